package api

import (
	"net/url"
	"strconv"
)

// TrailerFiles is the trailer at the end of a stream of files: a FilesEnd as JSON. A stream without it was cut.
const TrailerFiles = "Banger-Files"

// PutFiles says what becomes of a tar stream in a guest: PUT /v1/vms/{name}/files, its fields as the query. Unless Stream is
// set the stream holds one file, link or directory with all that is in it, and goes where cp would put it: into
// Path where that is a directory, else under that name.
type PutFiles struct {
	// Path is absolute, or relative to the home directory of the guest's user; "~" is that directory. With a
	// slash at its end it must be a directory.
	Path string
	// Contents: what is in the stream's directory is copied, not the directory itself.
	Contents bool
	// Into: Path must be a directory that is there.
	Into bool
	// Stream: the stream may hold anything, and is unpacked into the directory Path.
	Stream bool
	// Archive keeps the owners the stream names, and setuid, setgid and sticky bits.
	Archive bool
}

// Values returns p as a query.
func (p PutFiles) Values() url.Values {
	v := url.Values{"path": {p.Path}, "as": {"copy"}}
	setBool(v, "contents", p.Contents)
	setBool(v, "into", p.Into)
	setBool(v, "stream", p.Stream)
	setBool(v, "archive", p.Archive)
	return v
}

// ParsePutFiles is the reverse of Values.
func ParsePutFiles(v url.Values) PutFiles {
	return PutFiles{Path: v.Get("path"), Contents: v.Has("contents"), Into: v.Has("into"), Stream: v.Has("stream"), Archive: v.Has("archive")}
}

// GetFiles asks for a file, link or directory of a guest as a tar stream: GET /v1/vms/{name}/files, its fields as the query.
type GetFiles struct {
	// Path is as in PutFiles.
	Path string
	// Follow copies what a link at Path leads to instead of the link. A slash or "/." at the end of Path does so too.
	Follow bool
}

// Values returns g as a query.
func (g GetFiles) Values() url.Values {
	v := url.Values{"path": {g.Path}}
	setBool(v, "follow", g.Follow)
	return v
}

// ParseGetFiles is the reverse of Values.
func ParseGetFiles(v url.Values) GetFiles {
	return GetFiles{Path: v.Get("path"), Follow: v.Has("follow")}
}

func setBool(v url.Values, key string, set bool) {
	if set {
		v.Set(key, strconv.FormatBool(true))
	}
}

// FilesResult is what was copied.
type FilesResult struct {
	Entries int `json:"entries"`
	// Bytes is the sum of the sizes of files.
	Bytes int64 `json:"bytes"`
	// Skipped says what was left out and why, the first lines of it.
	Skipped []string `json:"skipped,omitempty"`
}

// FilesEnd is how a stream of files ended: Error is nil where it is whole.
type FilesEnd struct {
	FilesResult
	Error *Error `json:"error,omitempty"`
}
