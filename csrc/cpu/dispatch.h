// From a depth that is known at run time to a template argument.
#pragma once

// clang-format off
// A macro, because the branches must be inlined into each copy of a function that is compiled for several instruction sets.
#define SPARSENN_DISPATCH_DEPTH(depth, unrolled, deep)  \
  switch (depth) {                                      \
    case 1: { constexpr int D = 1; unrolled; break; }   \
    case 2: { constexpr int D = 2; unrolled; break; }   \
    case 3: { constexpr int D = 3; unrolled; break; }   \
    case 4: { constexpr int D = 4; unrolled; break; }   \
    case 5: { constexpr int D = 5; unrolled; break; }   \
    case 6: { constexpr int D = 6; unrolled; break; }   \
    case 7: { constexpr int D = 7; unrolled; break; }   \
    case 8: { constexpr int D = 8; unrolled; break; }   \
    default: deep; break;                               \
  }
// clang-format on
