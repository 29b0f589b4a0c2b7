package dns

import (
	"bufio"
	"bytes"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	dnsPort = 53
	// maxResolvConf is how much of the file is read in bytes; maxResolvers how many resolvers count.
	maxResolvConf, maxResolvers = 64 << 10, 8
	// lookAgain is how often the file is looked at, at most.
	lookAgain = time.Second
	// stayWith is how long a resolver that worked is asked before those that are named before it.
	stayWith = time.Minute
)

// ParseResolvConf returns the resolvers that a file as of resolv.conf(5) names, at most eight. Lines it does not
// understand do not count.
func ParseResolvConf(text []byte) []netip.AddrPort {
	var out []netip.AddrPort
	sc := bufio.NewScanner(bytes.NewReader(text))
	for sc.Scan() && len(out) < maxResolvers {
		f := strings.Fields(sc.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, netip.AddrPortFrom(addr.Unmap(), dnsPort))
		}
	}
	return out
}

// resolvers are the resolvers of the host, and which of them works.
type resolvers struct {
	fixed []netip.AddrPort
	path  string
	now   func() time.Time

	mu      sync.Mutex // guards what follows
	looked  time.Time
	file    stamp
	list    []netip.AddrPort
	changed uint64         // how often list did
	worked  netip.AddrPort // invalid for none
	workedT time.Time      // when it was first preferred
}

// resolversNow are the resolvers of a moment, in the order to ask them in; none where the host has none. The generation is a greater one
// where they are others.
type resolversNow struct {
	list       []netip.AddrPort
	generation uint64
}

// stamp tells one version of a file from another; the zero value is no file.
type stamp struct {
	inode, device uint64
	size          int64
	modified      time.Time
}

func stampOf(info fs.FileInfo) stamp {
	st := stamp{size: info.Size(), modified: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		st.inode, st.device = sys.Ino, uint64(sys.Dev)
	}
	return st
}

// inOrder returns the resolvers to ask.
func (r *resolvers) inOrder() resolversNow {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if len(r.fixed) > 0 {
		r.list = r.fixed
	} else if r.looked.IsZero() || now.Sub(r.looked) >= lookAgain || now.Before(r.looked) {
		r.looked = now
		r.read()
	}
	out := make([]netip.AddrPort, 0, len(r.list))
	if r.worked.IsValid() && now.Sub(r.workedT) < stayWith {
		out = append(out, r.worked)
	}
	for _, a := range r.list {
		if len(out) == 0 || a != out[0] {
			out = append(out, a)
		}
	}
	return resolversNow{out, r.changed}
}

// read reads the file where it has changed.
func (r *resolvers) read() {
	before := r.list
	defer func() {
		if !slices.Equal(before, r.list) {
			r.changed++
		}
	}()
	info, err := os.Stat(r.path)
	if err != nil {
		r.file, r.list, r.worked = stamp{}, nil, netip.AddrPort{}
		return
	}
	if st := stampOf(info); st != r.file {
		text, err := readSome(r.path)
		if err != nil {
			st = stamp{} // again the next time
		}
		r.file, r.list, r.worked = st, ParseResolvConf(text), netip.AddrPort{}
	}
}

func readSome(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxResolvConf))
}

// prefer remembers which resolver answered.
func (r *resolvers) prefer(a netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) > 0 && a == r.list[0] {
		r.worked = netip.AddrPort{}
		return
	}
	if now := r.now(); a != r.worked || now.Sub(r.workedT) >= stayWith {
		r.worked, r.workedT = a, now
	}
}
