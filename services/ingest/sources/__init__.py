"""Where documents come from: one module for each kind of source, behind one contract."""
