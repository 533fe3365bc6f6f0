package azure

// Refusal is the parser of what Entra answers.
var Refusal = refusal

// CheckClaims is the judge of a claims challenge.
var CheckClaims = checkClaims
