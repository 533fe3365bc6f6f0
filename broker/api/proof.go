package api

// ProofKubernetes is the one attestor whose proofs a broker verifies: a token that
// is bound to the workload's pod, for the audience credence://TRUST DOMAIN/workload.
const ProofKubernetes = "kubernetes"

// MaxProof is how long a proof may be, in bytes.
const MaxProof = 16 << 10

// FactProven is what the broker says of a workload whose proof it verified. No agent
// says it of its own: one may only say that it is unknown.
const FactProven = "workload.kubernetes.proven"
