package export

// For fuzzing.
var (
	ParseAnswer    = parseAnswer
	PartialSuccess = partialSuccess
)
