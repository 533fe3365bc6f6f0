package main

// What the tests start: the program in a process of its own, or in theirs.
var (
	Main = main
	Run  = run
)
