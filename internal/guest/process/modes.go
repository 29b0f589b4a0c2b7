package process

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Opcodes of RFC 4254 section 8 that are not those of a flag or a character.
const (
	modeEnd      = 0   // of the list
	modeUnknown  = 160 // from here on arguments have no known length, and the list ends
	modeDisabled = 255 // a character that is none
)

// modeChars are the opcodes of characters.
var modeChars = map[byte]int{
	1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL, 7: unix.VEOL2, 8: unix.VSTART,
	9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT, 13: unix.VWERASE, 14: unix.VLNEXT, 16: unix.VSWTC, 18: unix.VDISCARD,
}

// modeFlags are the opcodes of flags: in the four words of a termios, input, local, output and control.
var modeFlags = [4]map[byte]uint32{
	{30: unix.IGNPAR, 31: unix.PARMRK, 32: unix.INPCK, 33: unix.ISTRIP, 34: unix.INLCR, 35: unix.IGNCR, 36: unix.ICRNL, 37: unix.IUCLC,
		38: unix.IXON, 39: unix.IXANY, 40: unix.IXOFF, 41: unix.IMAXBEL, 42: unix.IUTF8},
	{50: unix.ISIG, 51: unix.ICANON, 52: unix.XCASE, 53: unix.ECHO, 54: unix.ECHOE, 55: unix.ECHOK, 56: unix.ECHONL, 57: unix.NOFLSH,
		58: unix.TOSTOP, 59: unix.IEXTEN, 60: unix.ECHOCTL, 61: unix.ECHOKE, 62: unix.PENDIN},
	{70: unix.OPOST, 71: unix.OLCUC, 72: unix.ONLCR, 73: unix.OCRNL, 74: unix.ONOCR, 75: unix.ONLRET},
	{90: unix.CS7, 91: unix.CS8, 92: unix.PARENB, 93: unix.PARODD},
}

// applyModes sets what an encoded list of terminal modes says. One that is cut short counts as far as it goes.
func applyModes(t *unix.Termios, modes []byte) {
	words := [4]*uint32{&t.Iflag, &t.Lflag, &t.Oflag, &t.Cflag}
	for len(modes) >= 5 && modes[0] != modeEnd && modes[0] < modeUnknown {
		op, arg := modes[0], binary.BigEndian.Uint32(modes[1:])
		modes = modes[5:]
		if at, ok := modeChars[op]; ok {
			t.Cc[at] = byte(arg)
			if arg == modeDisabled {
				t.Cc[at] = 0
			}
			continue
		}
		for i, flags := range modeFlags {
			flag := flags[op]
			if i == 3 && (op == 90 || op == 91) { // a size of characters, not a flag
				if arg != 0 {
					t.Cflag = t.Cflag&^unix.CSIZE | flag
				}
				continue
			}
			if arg != 0 {
				*words[i] |= flag
			} else {
				*words[i] &^= flag
			}
		}
	}
}
