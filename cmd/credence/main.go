// Command credence is the whole program: the operator's verbs, the broker, the
// agent, and dev, which runs the main job on one machine.
package main

func main() {}
