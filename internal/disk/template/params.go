package template

import (
	"strconv"
	"strings"
)

// Params say how an embedded file system is made.
type Params struct {
	// File is its name in internal/disk.
	File string
	// Size and Journal are in bytes.
	Size, Journal int64
}

// All lists the embedded file systems, by size.
var All = []Params{
	{File: "data-1GiB.zst", Size: 1 << 30, Journal: 32 << 20},
	{File: "data-20GiB.zst", Size: 20 << 30, Journal: 64 << 20},
}

// Label is the volume name of a data drive.
const Label = "banger-data"

// Epoch is the time, in seconds since 1970, that a template says it was made at.
const Epoch = 1767225600

// features are named one by one, so that no mke2fs.conf has a say. 64bit and
// resize_inode with descriptor blocks reserved for 4 TiB let the kernel grow it
// online, beyond 4 TiB in meta_bg form; each reserved block is one that is not zero. metadata_csum_seed makes the checksums independent
// of the UUID, which is then free to change.
var features = []string{
	"none", "has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit", "flex_bg",
	"sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize", "metadata_csum", "metadata_csum_seed",
}

// Features are the features a template has, as dumpe2fs names them.
func Features() []string { return features[1:] }

// Mke2fs is the command that makes the file system in the file at path, which has p.Size bytes and only zeros.
//
// Nothing is left for the kernel to initialise in the background: it would write
// 320 MB of zeros over inode tables that are zeros already.
func (p Params) Mke2fs(path string) []string {
	const uuid = "62616e67-6572-8000-8000-000000000000"
	return []string{
		"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
		"-O", strings.Join(features, ","),
		"-J", "size=" + strconv.FormatInt(p.Journal>>20, 10),
		"-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0,hash_seed=" + uuid + ",resize=1073741824",
		"-U", uuid, "-L", Label, "-G", "16", "-e", "remount-ro", "-M", "/", path, strconv.FormatInt(p.Size>>10, 10) + "k",
	}
}

// Mke2fsEnv is the environment that makes the result the same every time.
func Mke2fsEnv() []string {
	epoch := strconv.Itoa(Epoch)
	return []string{"PATH=/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL=C", "E2FSPROGS_FAKE_TIME=" + epoch, "SOURCE_DATE_EPOCH=" + epoch,
		"MKE2FS_CONFIG=/dev/null"}
}
