package config

// SectionCephFS is the section of the cephfs plugin.
const SectionCephFS = "cephfs"

// cephfsSettings are the settings handed to the cephfs plugin at Start.
func cephfsSettings() []Setting {
	return []Setting{
		{
			Section: SectionCephFS, Name: "workers", Type: Int, Default: "24", Min: 1,
			Help: "How many operations run at once for one directory.",
		},
		{
			Section: SectionCephFS, Name: "memory", Type: Size, Default: "64MiB", Min: 1 << 20,
			Help: "Size of all copy buffers together.",
		},
		{
			Section: SectionCephFS, Name: "block_diff", Type: Bool, Default: "true",
			Help: "Ask the OSDs which extents of a large file have changed between two snapshots, rather than read both.",
		},
		{
			Section: SectionCephFS, Name: "takeover_compare_content", Type: Bool, Default: "false",
			Help: "Compare the content of all files, not only their metadata, when a directory is taken over whose last snapshot on the peer was made by another daemon.",
		},
	}
}
