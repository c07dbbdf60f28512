// From a depth that is known at run time to a template argument.
#pragma once

#include <cstdint>
#include <type_traits>

#include "math/hadamard.h"

namespace sparsenn::cuda {

// Calls body(std::integral_constant<int, D>) for a depth that is compiled with all factors in registers; D = 0 stands
// for more.
template <class Body>
void dispatch_depth(int64_t depth, const Body& body) {
  static_assert(kMaxUnrolledDepth == 8, "the cases are written out");
  switch (depth) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 6:
      return body(std::integral_constant<int, 6>{});
    case 7:
      return body(std::integral_constant<int, 7>{});
    case 8:
      return body(std::integral_constant<int, 8>{});
    default:
      return body(std::integral_constant<int, 0>{});
  }
}

}  // namespace sparsenn::cuda
