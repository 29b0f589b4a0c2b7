// Command netbench is the guest's side of the network benchmarks: netbench send|recv|connect|exchange|idle|sink ADDRESS COUNT.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) != 4 {
		fail("usage: netbench send|recv|connect|exchange|idle|sink ADDRESS COUNT")
	}
	n, err := strconv.Atoi(os.Args[3])
	if err != nil {
		fail(err)
	}
	switch what, to := os.Args[1], os.Args[2]; what {
	case "send":
		bulk(to, n, func(c net.Conn, b []byte) (int, error) { return c.Write(b) })
	case "recv":
		bulk(to, n, func(c net.Conn, b []byte) (int, error) { return c.Read(b) })
	case "connect":
		median(n, func() {
			c := dial(to)
			defer c.Close()
		})
	case "exchange":
		median(n, func() { exchange(to) })
	case "idle":
		for range n {
			exchange(to)
			c := dial(to)
			if _, err := c.Write([]byte{1}); err != nil {
				fail(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				fail(err)
			}
			held = append(held, c)
		}
		fmt.Println("holding")
		_, _ = os.Stdin.Read(make([]byte, 1))
	case "sink": // COUNT connections, one after another
		ln, err := net.Listen("tcp", to)
		if err != nil {
			fail(err)
		}
		fmt.Println("listening")
		for range n {
			c, err := ln.Accept()
			if err != nil {
				fail(err)
			}
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	default:
		fail("unknown: " + what)
	}
}

// held keeps connections open.
var held []net.Conn

// bulk moves n MB and prints MB a second.
func bulk(to string, n int, move func(net.Conn, []byte) (int, error)) {
	c := dial(to)
	buf := make([]byte, 256<<10)
	start := time.Now()
	for left := n * 1e6; left > 0; {
		k, err := move(c, buf)
		if err != nil {
			fail(err)
		}
		left -= k
	}
	fmt.Println(float64(n) / time.Since(start).Seconds())
	_ = c.Close()
}

// exchange connects, and sends and receives a byte.
func exchange(to string) {
	c := dial(to)
	defer c.Close()
	if _, err := c.Write([]byte{1}); err != nil {
		fail(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		fail(err)
	}
}

// median times f so many times and prints the median in ms.
func median(n int, f func()) {
	all := make([]time.Duration, n)
	for i := range all {
		start := time.Now()
		f()
		all[i] = time.Since(start)
	}
	slices.Sort(all)
	fmt.Println(float64(all[n/2].Microseconds()) / 1000)
}

func dial(to string) net.Conn {
	c, err := net.Dial("tcp", to)
	if err != nil {
		fail(err)
	}
	return c
}

func fail(v any) {
	fmt.Fprintln(os.Stderr, "netbench:", v)
	os.Exit(1)
}
