"""Which part of the method does what: variants x seeds, trained, evaluated and compared."""
