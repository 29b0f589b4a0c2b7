// Package e2e tests banger as its users have it: the built programs, a real
// kernel, a real image and real VMs. The tests need the build tag e2e (make test-e2e);
// the scripts of testdata/script run the same programs over a fake QEMU and need nothing.
package e2e
