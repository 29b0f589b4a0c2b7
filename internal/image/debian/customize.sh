# Runs on the host, as root of the build's user namespace, with the path of the
# new root in $1, after all packages are installed.
set -eu
root=$1
etc=$root/etc
units=$etc/systemd/system

# What identifies a machine, the build or the host it ran on is not in an image.
rm -f "$etc"/ssh/ssh_host_* "$etc/resolv.conf" "$etc/hostname" "$root/var/lib/dbus/machine-id"
: >"$etc/machine-id"
rm -f "$etc/apt/apt.conf.d/99mmdebstrap"
if [ -e "$etc/dpkg/dpkg.cfg.d/99mmdebstrap" ]; then
	grep '^path-' "$etc/dpkg/dpkg.cfg.d/99mmdebstrap" >"$etc/dpkg/dpkg.cfg.d/banger-slim"
	rm "$etc/dpkg/dpkg.cfg.d/99mmdebstrap"
fi
cat >"$etc/apt/sources.list" <<'SOURCES'
@SOURCES@
SOURCES

# Packages put links to manual pages there, and some fail where they cannot.
for n in 1 2 3 4 5 6 7 8; do mkdir -p "$root/usr/share/man/man$n"; done

printf 'LANG=C.UTF-8\n' >"$etc/default/locale"

# A shell's way to its prompt starts no program and reads no library it may not need: the colours of ls are worked out here, and
# bash-completion is read at the first press of the tab key (bash(1): status 124 of a -D function tries again).
if [ -e "$etc/profile.d/bash_completion.sh" ]; then
	cat >"$etc/profile.d/bash_completion.sh" <<'COMPLETION'
if [ "x${BASH_VERSION-}" != x ] && [ "x${PS1-}" != x ] && [ "x${BASH_COMPLETION_VERSINFO-}" = x ] &&
    [ -r /usr/share/bash-completion/bash_completion ]; then
    _read_bash_completion() {
        complete -r -D
        unset -f _read_bash_completion
        . /usr/share/bash-completion/bash_completion
        return 124
    }
    complete -D -F _read_bash_completion
fi
COMPLETION
fi
colors=$(TERM=xterm-256color chroot "$root" dircolors -b | sed -n "s/^LS_COLORS='\\(.*\\)';$/\\1/p")
[ -n "$colors" ]
sed -i \
	-e "s|eval \"\$(dircolors -b)\"\$|export LS_COLORS='$colors'|" \
	-e 's|-f /usr/share/bash-completion/bash_completion \]|-r /etc/profile.d/bash_completion.sh ]|' \
	-e 's|\. /usr/share/bash-completion/bash_completion|. /etc/profile.d/bash_completion.sh|' \
	"$etc/skel/.bashrc"
sed -i 's|"$(id -u)" -eq 0|"${EUID:-$(id -u)}" -eq 0|' "$etc/profile"
cp "$etc/skel/.bashrc" "$etc/skel/.profile" "$root/root/"

# Units that wait for devices a microVM does not have, or do what a throw-away machine has no use for.
mkdir -p "$units"
mask() { for unit; do ln -sf /dev/null "$units/$unit"; done; }
mask getty.target getty@.service serial-getty@.service console-getty.service container-getty@.service getty-static.service
mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer e2scrub_reap.service
for module in dm_mod loop efi_pstore configfs drm fuse; do mask "modprobe@$module.service"; done
mask dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount
mask sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount systemd-binfmt.service
mask kmod-static-nodes.service systemd-pstore.service systemd-random-seed.service systemd-update-utmp.service
mask systemd-update-utmp-runlevel.service systemd-timesyncd.service systemd-journal-flush.service systemd-sysusers.service
# Of Debian 13: the linker's cache is in the image, and /tmp is on the disk, not in the little memory a VM has.
mask ldconfig.service tmp.mount

# Docker starts with the first use of its socket.
rm -f "$units/multi-user.target.wants/docker.service" "$units/multi-user.target.wants/containerd.service"
mkdir -p "$units/sockets.target.wants"
[ ! -e "$root/lib/systemd/system/docker.socket" ] || ln -sf /lib/systemd/system/docker.socket "$units/sockets.target.wants/docker.socket"

find "$root/var/log" -type f -delete
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/ldconfig "$root"/var/cache/debconf/*-old
rm -rf "$root"/var/lib/dpkg/*-old "$root/root/.cache"
