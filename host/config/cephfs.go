package config

// SectionCephFS is the section of the cephfs plugin.
const SectionCephFS = "cephfs"

// cephfsSettings are the settings handed to the cephfs plugin at Start. Those
// with an empty default are left out there unless they are set, so that the
// plugin's own choice stands.
func cephfsSettings() []Setting {
	return []Setting{}
}
