package deb

import (
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func TestChooseMirrors(t *testing.T) {
	const debian = "ID=debian\nVERSION_CODENAME=bookworm\n"
	public := Mirrors{PublicMirror, []string{PublicSecurity}}
	for name, c := range map[string]struct {
		configured string
		files      map[string]string
		want       Mirrors
	}{
		"nothing": {want: public},
		"configured": {configured: "https://mirror.example/debian/",
			want: Mirrors{"https://mirror.example/debian", []string{"https://mirror.example/debian-security", PublicSecurity}}},
		"configured wins": {configured: "http://a.example/d", files: map[string]string{
			"etc/os-release": debian, "etc/apt/sources.list": "deb http://b.example/debian bookworm main\n"},
			want: Mirrors{"http://a.example/d", []string{PublicSecurity}}},
		"the public one has no security archive beside it": {configured: PublicMirror, want: public},
		"deb822": {files: map[string]string{"etc/os-release": debian, "etc/apt/sources.list.d/debian.sources": `Types: deb deb-src
# a comment
URIs: http://m.example/debian/
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://s.example/debian-security
Suites: bookworm-security
Components: main
`}, want: Mirrors{"http://m.example/debian", []string{"http://s.example/debian-security", "http://m.example/debian-security", PublicSecurity}}},
		"one line": {files: map[string]string{"usr/lib/os-release": "ID=\"debian\"\nVERSION_CODENAME='trixie'\n",
			"etc/apt/sources.list": "# deb http://no.example/debian trixie main\ndeb-src http://src.example/debian trixie main\n" +
				"deb cdrom:[Debian]/ trixie main\ndeb [ arch=amd64 signed-by=/x ] https://m.example/debian/ trixie main contrib # c\n" +
				"deb http://m.example/debian-security trixie-security main\n"},
			want: Mirrors{"https://m.example/debian", []string{"http://m.example/debian-security", "https://m.example/debian-security", PublicSecurity}}},
		"others are no Debian": {files: map[string]string{"etc/os-release": debian,
			"etc/apt/sources.list.d/a.list":    "deb https://apt.releases.example bookworm main\n",
			"etc/apt/sources.list.d/b.list":    "deb https://download.example/linux/debian bookworm stable\n",
			"etc/apt/sources.list.d/c.sources": "Types: deb\nURIs: http://x.example/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n",
			"etc/apt/sources.list.d/d.list":    "deb http://odd.example/archive bookworm main\ndeb http://odd.example/archive bookworm-updates main\n",
			"etc/apt/sources.list.d/e.save":    "deb http://save.example/debian bookworm main\n"},
			want: Mirrors{"http://odd.example/archive", []string{PublicSecurity}}},
		"not Debian": {files: map[string]string{"etc/os-release": "ID=ubuntu\nID_LIKE=debian\n",
			"etc/apt/sources.list": "deb http://archive.example/debian stable main\n"}, want: public},
		"broken": {files: map[string]string{"etc/os-release": debian, "etc/apt/sources.list": "deb\ndeb [\ndeb x\ndeb [a http://x.example/debian stable main",
			"etc/apt/sources.list.d/x.sources": " Types: deb\n"}, want: public},
	} {
		t.Run(name, func(t *testing.T) {
			host := fstest.MapFS{}
			for path, text := range c.files {
				host[path] = &fstest.MapFile{Data: []byte(text)}
			}
			if diff := cmp.Diff(c.want, ChooseMirrors(c.configured, host)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
