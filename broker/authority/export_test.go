package authority

// CheckLeaf is what stands between a fault in signing and a caller: nothing
// outside can bring such a fault about.
var CheckLeaf = checkLeaf
