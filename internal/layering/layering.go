// Package layering holds the rules about which package may import which. They are
// checked by its test, which reads the sources itself.
package layering
