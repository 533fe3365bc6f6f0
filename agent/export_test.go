package agent

// VerifyBroker is verifyBroker, for vectors.
var VerifyBroker = verifyBroker
