package gcp

// Refusal is the parser of what Google answers.
var Refusal = refusal
