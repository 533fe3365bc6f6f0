package server

// EvictionBound is how late an eviction, a revocation or a Deny that one broker
// made holds on another, while both reach the database: a look that began just
// before it and saw nothing, the pause, and the next look, which takes nodes and
// revocations over. Mostly it is the pause. A broker whose look takes longer is one
// without its database: on that nothing new holds before it is back but what is made
// there (--here), nobody joins, and nodes' SVIDs end without being renewed.
const EvictionBound = LookTime + LookEvery + LookTime
