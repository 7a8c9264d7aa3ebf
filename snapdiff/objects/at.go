package objects

// At returns the object as it is in a snapshot; ok is false if it is not there.
func (o Object) At(snap uint64) (v Version, ok bool, err error) {
	i, err := o.serving(snap)
	if err != nil || i < 0 {
		return Version{}, false, err
	}
	return o.Versions[i], true, nil
}
