package confine

// Handled is handled, for tests.
var Handled = handled
