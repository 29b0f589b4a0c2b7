package fakefc

import "errors"

func (f *fake) bindQEMU(string) error { return errors.ErrUnsupported }
func (f *fake) buildQEMU() error      { return errors.ErrUnsupported }
