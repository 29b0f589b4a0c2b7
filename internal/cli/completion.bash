
# What follows is asked for where the bash-completion package is not there.

# The words of the command line up to the cursor. Unlike bash's own they are not split at =, : and @, which --flag=value,
# NAME:PATH and USER@NAME are written with.
__banger_init_completion()
{
    local line=${COMP_LINE:0:COMP_POINT} word i
    words=() cword=-1
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i > 0)) && [[ $line != [[:blank:]]* && ($word == [=:@]* || ${COMP_WORDS[i - 1]} == *[=:@]) ]]; then
            words[cword]+=$word
        else
            words[++cword]=$word
        fi
        line=${line#"${line%%[![:blank:]]*}"}
        if ((i == COMP_CWORD)); then
            words[cword]=${words[cword]%"${word#"$line"}"} # the cursor may stand within the word
        fi
        line=${line#"$word"}
    done
    cur=${words[cword]} prev=
    if ((cword > 0)); then
        prev=${words[cword - 1]}
    fi
}

# Directories.
__banger_filedir()
{
    if declare -F _filedir >/dev/null; then
        _filedir "$@"
        return
    fi
    compopt -o filenames 2>/dev/null
    local dir
    while IFS= read -r dir; do
        COMPREPLY+=("$dir")
    done < <(compgen -d -- "$cur")
}
