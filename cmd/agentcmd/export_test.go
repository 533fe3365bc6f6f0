package agentcmd

// NewAdmin serves the operator on the node.
var NewAdmin = newAdmin
