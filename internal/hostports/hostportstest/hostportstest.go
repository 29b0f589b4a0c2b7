// Package hostportstest has ports of this host that stay free until a test uses them.
package hostportstest

import (
	"errors"
	"net"
	"os"
	"strconv"
	"sync/atomic"
)

// The ports that Free chooses from are below those the kernel gives away (net.ipv4.ip_local_port_range, from 32768 on), so that nobody
// who asks for any port, or connects, gets one of them in between.
const (
	first = 12_000
	count = 20_000
)

// Processes beside each other begin apart, at 64 ports for each.
var next atomic.Uint32

func init() { next.Store(uint32(os.Getpid()) * 64) }

// Free returns a port that nobody has, by TCP or UDP, and that no other call in this process returns.
func Free() (uint16, error) {
	var errs error
	for range 1000 {
		port := first + next.Add(1)%count
		if errs = probe(":" + strconv.Itoa(int(port))); errs == nil {
			return uint16(port), nil
		}
	}
	return 0, errs
}

func probe(at string) error {
	l, err := net.Listen("tcp4", at)
	if err != nil {
		return err
	}
	c, err := net.ListenPacket("udp4", at)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	return errors.Join(l.Close(), c.Close())
}
