package config

// SectionRBD is the section of the rbd plugin.
const SectionRBD = "rbd"

// rbdSettings are the settings handed to the rbd plugin at Start.
func rbdSettings() []Setting {
	return []Setting{
		{
			Section: SectionRBD, Name: "memory", Type: Size, Default: "64MiB", Min: 8 << 20,
			Help: "Size of all copy buffers together.",
		},
		{
			Section: SectionRBD, Name: "objects_ahead", Type: Int, Default: "64", Min: 1,
			Help: "How many objects of one image are copied at once.",
		},
		{
			Section: SectionRBD, Name: "rate_limit", Type: Size, Default: "0",
			Help: "How many bytes a second are read from the peer for one image; 0 is no limit.",
		},
		{
			Section: SectionRBD, Name: "connect_timeout", Type: Duration, Default: "15s", Min: 1e9,
			Help: "How long it may take to connect to a peer's cluster, before that is tried anew.",
		},
		{
			Section: SectionRBD, Name: "compare_taken_over", Type: Bool, Default: "false",
			Help: "Compare all of an image, and repair what differs, when it was copied by another daemon, or in part: the stock daemon does not carry discards over. Without this, `rbd mirror compare POOL/IMAGE` at the admin socket does it for one image.",
		},
		{
			Section: SectionRBD, Name: "recreate_on_resync", Type: Bool, Default: "false",
			Help: "On a resync, remove the local image and make it anew, as the stock daemon does. Otherwise the image stays, and every object of it is compared.",
		},
		{
			Section: SectionRBD, Name: "journal_memory", Type: Size, Default: "192MiB", Min: 16 << 20,
			Help: "Size of all that is read ahead of the journals of images, together.",
		},
		{
			Section: SectionRBD, Name: "journal_strict", Type: Bool, Default: "false",
			Help: "Carry the entries of journals out one at a time, so that an image is at a point of its journal at any moment. The metadata cephmirror.replay_mode of an image (strict or merged) goes before.",
		},
	}
}
