package agent

// VerifyBroker is verifyBroker, for vectors.
var VerifyBroker = verifyBroker

// NodeSigner is the ID of the authority that signed the node's SVID.
func (a *Agent) NodeSigner() string { return signerOf(a.node.certificate()) }
