package supervise

import (
	"context"
	"net"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/vmm/frames"
)

// carryFrames takes a stream to PortNet and carries Ethernet frames between it and the cable, until it ends or the next one comes.
func (b *boot) carryFrames(ctx context.Context, conn net.Conn) {
	log := b.s.log
	_ = conn.SetDeadline(time.Now().Add(helloTimeout))
	var hello wire.NetHello
	if err := wire.NewLineReader(conn).Read(&hello); err != nil {
		log.Warn("a stream of frames began with no hello", "error", err)
		return
	}
	refuse := func(reason string) {
		log.Warn("a stream of frames was refused", "reason", reason)
		_ = wire.WriteLine(conn, wire.CallReply{Type: wire.ReplyRefused, Reason: reason})
	}
	switch {
	case hello.Version != wire.Version:
		refuse("another version of the protocol")
		return
	case !b.calls.knows(hello.Token):
		refuse("not the token of this boot")
		return
	}
	ctx, release := b.s.cable.plug(ctx)
	defer release()
	if err := wire.WriteLine(conn, wire.CallReply{Type: wire.ReplyWelcome}); err != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	if err := frames.Carry(ctx, conn, b.s.cable.vm); err != nil && ctx.Err() == nil {
		log.Warn("a stream of frames ended", "error", err)
	}
}
