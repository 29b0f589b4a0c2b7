package api

import (
	"net/url"
	"testing"
	"time"
)

func TestSessionLogsQuery(t *testing.T) {
	for _, want := range []SessionLogs{
		{Tail: -1},
		{Stream: "stderr", Since: 10 * time.Minute, Tail: 0, Follow: true},
		{Stream: "stdout", Tail: 100},
	} {
		if got, err := ParseSessionLogs(want.Values()); err != nil || got != want {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
	}
	if got, err := ParseSessionLogs(nil); err != nil || got != (SessionLogs{Tail: -1}) {
		t.Errorf("nothing became %+v, %v", got, err)
	}
	for _, bad := range []string{"stream=both", "since=yesterday", "since=-1s", "tail=x"} {
		q, _ := url.ParseQuery(bad)
		if _, err := ParseSessionLogs(q); KindOf(err) != KindInvalid {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
