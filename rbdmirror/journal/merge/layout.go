package merge

// Layout is how the bytes of an image are spread over objects. Whatever
// it is, unit divides the object size.
type Layout struct {
	ObjectSize  uint64
	StripeUnit  uint64 // 0: the object size
	StripeCount uint64 // 0: 1
}

func (l Layout) stripes() (unit, count uint64) {
	unit, count = l.StripeUnit, max(l.StripeCount, 1)
	if unit == 0 || unit > l.ObjectSize {
		unit = l.ObjectSize
	}
	return unit, count
}

// Piece is a part of a range of the image that lies in one object.
type Piece struct {
	Object uint64
	Offset uint64 // in the object
	Length uint64
	At     uint64 // in the range
}

// Pieces calls yield for the parts of a range of the image, in the image's order.
func (l Layout) Pieces(offset, length uint64, yield func(Piece)) {
	unit, count := l.stripes()
	perObject := l.ObjectSize / unit
	for at := uint64(0); at < length; {
		block := (offset + at) / unit
		stripe, column := block/count, block%count
		inBlock := (offset + at) % unit
		n := min(unit-inBlock, length-at)
		yield(Piece{
			Object: stripe/perObject*count + column,
			Offset: stripe%perObject*unit + inBlock,
			Length: n,
			At:     at,
		})
		at += n
	}
}

// Extents returns the parts of a range of the image joined where they are
// adjacent in their objects. At is that of the first part.
func (l Layout) Extents(offset, length uint64) (list []Piece) {
	last := make(map[uint64]int)
	l.Pieces(offset, length, func(p Piece) {
		if i, ok := last[p.Object]; ok && list[i].Offset+list[i].Length == p.Offset {
			list[i].Length += p.Length
			return
		}
		last[p.Object] = len(list)
		list = append(list, p)
	})
	return list
}

// Objects returns how many objects an image of a size has.
func (l Layout) Objects(size uint64) uint64 {
	unit, count := l.stripes()
	period := l.ObjectSize * count
	n := (size + period - 1) / period * count
	// Of the last period, columns that nothing reaches have no objects.
	if rest := size % period; rest > 0 && rest < unit*count {
		n -= count - (rest+unit-1)/unit
	}
	return n
}

// ObjectEnd returns how many bytes of an object belong to an image of a size.
func (l Layout) ObjectEnd(object, size uint64) uint64 {
	unit, count := l.stripes()
	period := l.ObjectSize * count
	begin := object / count * period
	column := object % count
	if size <= begin {
		return 0
	}
	rest := min(size-begin, period)
	stripes := rest / (unit * count) // complete ones
	end := stripes * unit
	if partial := rest % (unit * count); partial > column*unit {
		end += min(partial-column*unit, unit)
	}
	return end
}

// Within calls yield for the parts of an object, up to some end, with where they
// are in the image: At is an offset in the image.
func (l Layout) Within(object, end uint64, yield func(Piece)) {
	unit, count := l.stripes()
	begin := object / count * l.ObjectSize * count
	column := object % count
	for at := uint64(0); at < end; at += unit {
		yield(Piece{
			Object: object, Offset: at, Length: min(unit, end-at),
			At: begin + at*count + column*unit,
		})
	}
}
