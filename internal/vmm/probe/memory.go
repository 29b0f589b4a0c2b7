package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// memoryVersion is the version of the file that memory is kept in.
	memoryVersion = 1
	// maxMemory is how much of the file is read, in bytes; maxFailures how many failures are kept, maxReason how much of each reason.
	maxMemory, maxFailures, maxReason = 64 << 10, 8, 300
	// fetchAgain is how long after a fetch that failed the next one is tried.
	fetchAgain = time.Hour
)

// Failure is an engine that ended at its start.
type Failure struct {
	Engine  string `json:"engine"`
	Accel   string `json:"accel"`
	Binary  string `json:"binary"`
	Version string `json:"version"`
	// Kernel is the host's, as uname -r has it.
	Kernel string `json:"kernel"`
	// Reason is a line for people.
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// fetchFailure is a release of Firecracker that could not be fetched.
type fetchFailure struct {
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
	At      time.Time `json:"at"`
}

// memory is what is remembered of engines that failed, so that not every start of a VM fails at them first.
type memory struct {
	Version  int           `json:"version"`
	Failures []Failure     `json:"failures,omitempty"`
	Fetch    *fetchFailure `json:"fetch,omitempty"`
}

// readMemory reads a memory; one that is not there or cannot be read is none.
func readMemory(path string) memory {
	f, err := os.Open(path)
	if err != nil {
		return memory{}
	}
	defer f.Close()
	var m memory
	data, err := io.ReadAll(io.LimitReader(f, maxMemory))
	if err != nil || json.Unmarshal(data, &m) != nil || m.Version != memoryVersion {
		return memory{}
	}
	return m
}

// write replaces the file at path.
func (m memory) write(path string) (err error) {
	m.Version = memoryVersion
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

// add notes a failure; what is of another kernel is of no interest any more, nor is an older one of the same engine.
func (m *memory) add(f Failure) {
	kept := []Failure{}
	for _, old := range m.Failures {
		same := old.Engine == f.Engine && old.Accel == f.Accel && old.Binary == f.Binary
		if old.Kernel == f.Kernel && !same {
			kept = append(kept, old)
		}
	}
	m.Failures = append(kept, f)
	m.Failures = m.Failures[max(0, len(m.Failures)-maxFailures):]
}

// fetchFailed says why a release could not be fetched, where that is too short a time ago to try again; else it is empty.
func (m memory) fetchFailed(version string, now time.Time) string {
	if m.Fetch == nil || m.Fetch.Version != version || now.Before(m.Fetch.At) || now.Sub(m.Fetch.At) >= fetchAgain {
		return ""
	}
	return m.Fetch.Reason
}

// Forget has all engines tried again that failed, from the next start of a VM on: it removes the file of Config.Memory.
func Forget(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the engines that failed: %w", err)
	}
	return nil
}

// line makes one line of bounded length of an error.
func line(err error) string {
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return s
}
