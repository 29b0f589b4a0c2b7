package fakefc

import "errors"

func (f *firecracker) bindQEMU(string) error { return errors.ErrUnsupported }
func (f *firecracker) buildQEMU() error      { return errors.ErrUnsupported }
