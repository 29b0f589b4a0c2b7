package frames

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Carry carries frames between a stream of the guest and the VM's end of a Pair, until one of them or ctx ends. On the stream each
// frame stands behind its length, as wire.PortNet says.
func Carry(ctx context.Context, stream net.Conn, vm *os.File) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	_ = vm.SetReadDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() {
		_ = stream.Close()
		_ = vm.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	out := make(chan struct{})
	go func() {
		defer close(out)
		cancel(toStream(stream, vm))
	}()
	cancel(fromStream(stream, vm))
	<-out
	if err := context.Cause(ctx); !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
		return err
	}
	return ctx.Err()
}

func toStream(stream io.Writer, vm *os.File) error {
	b := make([]byte, 2+wire.MaxEthernet)
	for {
		n, err := vm.Read(b[2:])
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint16(b, uint16(n))
		if _, err := stream.Write(b[:2+n]); err != nil {
			return err
		}
	}
}

func fromStream(stream io.Reader, vm *os.File) error {
	r := bufio.NewReaderSize(stream, 2+wire.MaxEthernet)
	b := make([]byte, wire.MaxEthernet)
	for {
		if _, err := io.ReadFull(r, b[:2]); err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint16(b))
		if n < 14 || n > wire.MaxEthernet {
			return fmt.Errorf("a frame of %d bytes", n)
		}
		if _, err := io.ReadFull(r, b[:n]); err != nil {
			return err
		}
		if _, err := vm.Write(b[:n]); err != nil {
			return err
		}
	}
}
