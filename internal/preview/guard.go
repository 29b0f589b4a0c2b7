package preview

import (
	"errors"
	"fmt"
	"net/http"
)

// admit reports why the page a request comes from may not make it; nil where it may, or where no browser asks.
//
// A browser says where a request comes from in Sec-Fetch-Site, -Mode and -Dest (W3C Fetch Metadata), which pages cannot set, and in Origin.
// What comes from a page of the same VM, of any of its ports, may do everything: the ports are one application's. All others may
// lead the user here, as a link does, but neither read, nor send, nor frame anything. Programs that are no browser send none of these.
func admit(r *http.Request, to target) error {
	for _, name := range []string{"Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest"} {
		if len(r.Header[name]) > 1 {
			return fmt.Errorf("the request has more than one %s", name)
		}
	}
	site, referer := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Referer")
	origin, hasOrigin := "", len(r.Header["Origin"]) > 0
	if hasOrigin {
		origin = r.Header["Origin"][0]
	}
	switch {
	case origin == "null" && site == "same-origin":
		// The page has the referrer policy no-referrer, which hides the origin of its own forms from itself (Fetch, append a request
		// Origin header). A page without an origin, in a sandbox, is never same-origin.
	case hasOrigin && !to.owns(origin):
		return fmt.Errorf("the request comes from a page of %q", clip(origin))
	}
	switch site {
	case "same-origin", "none": // none is the user: the address bar, a bookmark
		return nil
	case "":
		if !hasOrigin && !safe(r.Method) && referer != "" && !to.owns(referer) {
			return fmt.Errorf("the request comes from a page at %q", clip(referer))
		}
		return nil
	case "same-site": // browsers have a site per VM, but with other programs' ports among it
		if hasOrigin || to.owns(referer) {
			return nil
		}
	}
	if !hasOrigin && safe(r.Method) && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document" {
		return nil
	}
	return errors.New("the request comes from a page of another site")
}

// safe reports whether a method only reads, as far as HTTP is kept to.
func safe(method string) bool { return method == http.MethodGet || method == http.MethodHead }
