package cli

import (
	"fmt"
	"io"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// showAfter is how long work may take without a word about it.
const showAfter = 300 * time.Millisecond

// progressView shows where operations are: on a terminal one line that is redrawn and erased at the
// end, else a plain line per step. Notes are printed once and stay. It belongs to one goroutine.
type progressView struct {
	w     io.Writer
	live  bool // redraw one line
	quiet bool
	width func() int
	now   func() time.Time
	began time.Time
	ops   []opView
	drawn bool // the live line stands on the terminal
}

// opView is what is known of one operation.
type opView struct {
	label string // shown before its steps; empty where it is the only one
	op    api.Operation
	notes int // printed so far
	// pending are steps not printed yet, in plain mode.
	pending []string
	step    string
	began   time.Time // of step
	first   int64     // bytes done when first heard of in this step
}

func newProgressView(a *App, ops int) *progressView {
	return &progressView{
		w: a.Err, live: a.Terminal.Err, quiet: a.quiet, now: a.Now, began: a.Now(),
		width: func() int { _, cols := a.Terminal.Size(); return cols },
		ops:   make([]opView, ops),
	}
}

// update takes in news of operation i; name is its label where there are several.
func (v *progressView) update(i int, name string, op api.Operation) {
	if v.quiet {
		return
	}
	o := &v.ops[i]
	if len(v.ops) > 1 {
		o.label = name
	}
	if step := op.Progress.Step; step != "" && step != o.step {
		o.step, o.began, o.first = step, v.now(), op.Progress.Done
		o.pending = append(o.pending, stepLine(o.label, op.Progress))
	}
	o.op = op
	for ; o.notes < len(op.Notes); o.notes++ {
		v.line(op.Notes[o.notes])
	}
	if op.Ended() {
		o.pending = nil
	}
	v.tick()
}

// tick shows what is due by now.
func (v *progressView) tick() {
	if v.quiet || v.now().Sub(v.began) < showAfter {
		return
	}
	if v.live {
		v.draw()
		return
	}
	for i := range v.ops {
		for _, line := range v.ops[i].pending {
			v.line(line)
		}
		v.ops[i].pending = nil
	}
}

// line prints a line that stays.
func (v *progressView) line(text string) {
	if v.quiet {
		return
	}
	v.erase()
	fmt.Fprintf(v.w, "banger: %s\n", safeText(text))
}

// close erases the live line.
func (v *progressView) close() { v.erase() }

func (v *progressView) erase() {
	if v.drawn {
		io.WriteString(v.w, "\r\x1b[K")
		v.drawn = false
	}
}

// draw redraws the live line: the first operation that has not ended.
func (v *progressView) draw() {
	for i := range v.ops {
		o := &v.ops[i]
		if o.step == "" || o.op.Ended() {
			continue
		}
		text := o.line(v.now(), v.width()-1) // the last column would wrap
		io.WriteString(v.w, "\r"+text+"\x1b[K")
		v.drawn = true
		return
	}
	v.erase()
}

// minStep is how many columns of a step's name are left on a narrow terminal.
const minStep = 12

// line is the live line: step, bytes, rate, elapsed time. Where they do not fit into width columns the
// step is shortened first; width < 1 is no limit.
func (o *opView) line(now time.Time, width int) string {
	p, elapsed := o.op.Progress, now.Sub(o.began)
	var figures string
	add := func(text string) { figures += "  " + text }
	switch {
	case p.Total > 0:
		add(fmt.Sprintf("%s/%s %d%%", size(p.Done), size(p.Total), min(100, int64(float64(p.Done)/float64(p.Total)*100))))
	case p.Done > 0:
		add(size(p.Done))
	}
	if moved := p.Done - o.first; moved > 0 && elapsed >= time.Second {
		add(size(int64(float64(moved)/elapsed.Seconds())) + "/s")
	}
	add(elapsed.Truncate(time.Second).String())
	step := stepLine(o.label, api.Progress{Step: o.step})
	if width < 1 {
		return step + figures
	}
	return clip(clip(step, max(minStep, width-len(figures)))+figures, width)
}

// stepLine is the plain line of a step.
func stepLine(label string, p api.Progress) string {
	text := safeText(p.Step)
	if label != "" {
		text = safeText(label) + ": " + text
	}
	if p.Total > 0 {
		text += " (" + size(p.Total) + ")"
	}
	return text
}
