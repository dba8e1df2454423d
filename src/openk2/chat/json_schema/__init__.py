"""JSON schemas as the grammar compiler, llguidance, can take them without admitting anything that is not valid.

`references` finds what a `$ref` means, `finite` what could never end, `one_of` keeps the branches of a `oneOf` apart,
`dates` has the formats about which the compiler is less exact, and `normalise` makes one schema of it all. Each change
only narrows what the schema admits, so what the grammar admits is valid under the schema as it was declared.
"""
