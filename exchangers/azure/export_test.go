package azure

// Refusal is the parser of what Entra answers.
var Refusal = refusal
