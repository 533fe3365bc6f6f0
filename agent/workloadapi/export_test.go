package workloadapi

// Validate is validate, for vectors and fuzzing.
var Validate = validate

// NewLimiter is newLimiter, with bounds that a test can reach.
var NewLimiter = newLimiter
