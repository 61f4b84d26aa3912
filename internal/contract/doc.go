// Package contract holds tests of what callers rely on and no compiler and no `buf breaking` sees: routes, operation
// ids, rules of fields, defaults, reasons of errors, and the examples.
package contract
