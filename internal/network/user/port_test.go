package user

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/network/egress"
)

// TestRefusalIsToldOnce: the log says why a guest's connection is refused, and a guest cannot fill it.
func TestRefusalIsToldOnce(t *testing.T) {
	var log bytes.Buffer
	p := &Port{net: &Network{log: slog.New(slog.NewTextHandler(&log, nil))}, vm: testVM(1), told: map[string]struct{}{}, ctx: t.Context()}
	dst := netip.MustParseAddrPort("10.1.2.3:80")
	for range 3 {
		if !p.refused("tcp", dst, fmt.Errorf("dial: %w", &egress.RefusedError{Dst: dst, Rule: "private network"})) {
			t.Error("not taken for a refusal")
		}
	}
	if p.refused("tcp", dst, errors.New("no route to host")) {
		t.Error("an error of the host is taken for a refusal")
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "vm="+p.vm.Name+" ") ||
		!strings.Contains(got, `dst=10.1.2.3:80 rule="private network"`) {
		t.Errorf("the log:\n%s", got)
	}
	for i := range 5 * maxTold {
		p.refused("udp", dst, &egress.RefusedError{Dst: dst, Rule: fmt.Sprintf("rule %d", i)})
	}
	if n := strings.Count(log.String(), "\n"); n != maxTold {
		t.Errorf("%d lines, want %d", n, maxTold)
	}
}
