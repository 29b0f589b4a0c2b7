// Package image keeps the base drives VMs boot from: an image is a read-only
// root file system, rootfs.ext4, and its configuration, image.json, in a
// directory named by the digest of the former.
//
// store.go finds, checks and removes images, record.go is image.json; package content is what they share with kernels.
// catalog.go lists what can be pulled and from where (catalog_parse.go reads catalogs, catalog_user.go those of the user's), fetch_bundle.go fetches bundles, pull.go makes it local.
// recipe.go builds Debian with mmdebstrap, recipe_docker.go says with which Docker: host.go checks what that needs of the
// host, scratch.go is where it works, status.go reads its progress, mise.go
// fetches what is not in Debian. recipe_vm.go builds the same in a VM (deps.go) on hosts without mmdebstrap.
package image
