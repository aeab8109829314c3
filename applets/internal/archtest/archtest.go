// Package archtest holds the project's architecture: which package may import
// what, and why. It contains only a test and is imported by nothing.
package archtest
