// Networks for NumPy.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <vector>

#include "registration/native.h"
#include "runtime/network.h"

namespace py = pybind11;

namespace sparsenn {
namespace {

using runtime::Method;
using runtime::Network;

template <class T>
std::vector<T> copied(const Numbers<T>& numbers) {
  return {numbers.data(), numbers.data() + numbers.size()};
}

// A network, and the shapes of the arrays that it takes and gives.
struct Model {
  explicit Model(int64_t channels, int64_t height, int64_t width) : network({channels, height, width}) {}

  // The result; None where x is not what the network takes, which the caller then explains.
  py::object run(const py::object& x) const {
    if (!py::array_t<float>::check_(x)) return py::none();
    const auto array = py::reinterpret_borrow<py::array>(x);
    if (array.ndim() != static_cast<py::ssize_t>(in.size())) return py::none();
    if ((array.flags() & kReadable) != kReadable) return py::none();
    for (size_t i = 1; i < in.size(); ++i) {
      if (array.shape(i) != in[i]) return py::none();
    }
    const int64_t count = array.shape(0);
    std::vector<py::ssize_t> shape = out;
    shape[0] = count;
    py::array_t<float> result(shape);
    const auto* from = static_cast<const float*>(array.data());
    float* to = result.mutable_data();
    if (count * weight < kLong) {
      network.run(from, count, to, 1);
    } else {
      const py::gil_scoped_release release;
      network.run(from, count, to, threads);
    }
    return result;
  }

  static constexpr double kLong = 2e-5;  // seconds from which on other threads of Python may run meanwhile
  Network network;
  std::vector<py::ssize_t> in, out;  // the first is for the batch
  int threads = 1;
  double weight = 0;  // about the seconds of a sample
};

runtime::Spans spans(const py::tuple& parts) {
  return {copied(parts[0].cast<Numbers<int32_t>>()), copied(parts[1].cast<Numbers<int32_t>>()),
          copied(parts[2].cast<Numbers<float>>())};
}

}  // namespace

void bind_runtime(py::module_& m) {
  py::class_<Model>(m, "Network", "Steps of inference; sparsenn.runtime makes and explains it.")
      .def(py::init<int64_t, int64_t, int64_t>(), py::arg("channels"), py::arg("height"), py::arg("width"))
      .def(
          "product",
          [](Model& self, int64_t of, const Numbers<int32_t>& starts, const Numbers<int32_t>& columns,
             const Numbers<float>& values, const Numbers<float>& bias, const std::vector<int64_t>& window, bool relu,
             const std::array<bool, 3>& dense) {
            if (window.size() != 8) throw py::value_error("a window has 8 sizes");
            runtime::Window w;
            for (int i = 0; i < 2; ++i) {
              w.kernel[i] = window[i];
              w.stride[i] = window[2 + i];
              w.padding[i] = window[4 + i];
              w.dilation[i] = window[6 + i];
            }
            const auto method = [](bool dense) { return dense ? Method::dense : Method::sparse; };
            return self.network.add_product(of, {copied(starts), copied(columns), copied(values), copied(bias)}, w,
                                            relu, {method(dense[0]), method(dense[1]), method(dense[2])});
          },
          py::arg("of"), py::arg("starts"), py::arg("columns"), py::arg("values"), py::arg("bias"), py::arg("window"),
          py::arg("relu"), py::arg("dense"))
      .def("sum", [](Model& self, int64_t a, int64_t b, bool relu) { return self.network.add_sum(a, b, relu); })
      .def("relu", [](Model& self, int64_t of) { return self.network.add_relu(of); })
      .def("curve",
           [](Model& self, int64_t of, const std::string& name) {
             using runtime::Curve;
             const std::map<std::string, Curve> curves{{"tanh", Curve::tanh},
                                                       {"sigmoid", Curve::sigmoid},
                                                       {"gelu", Curve::gelu},
                                                       {"gelu_tanh", Curve::gelu_tanh}};
             const auto found = curves.find(name);
             if (found == curves.end())
               throw py::value_error("curve is '" + name + "'; it takes tanh, sigmoid, gelu or gelu_tanh");
             return self.network.add_curve(of, found->second);
           })
      .def("affine", [](Model& self, int64_t of, const Numbers<float>& scale, const Numbers<float>& shift,
                        bool relu) { return self.network.add_affine(of, copied(scale), copied(shift), relu); })
      .def("pool",
           [](Model& self, int64_t of, bool average, const py::tuple& rows, const py::tuple& columns) {
             return self.network.add_pool(of, average, spans(rows), spans(columns));
           })
      .def("softmax", [](Model& self, int64_t of) { return self.network.add_softmax(of); })
      .def("flatten", [](Model& self, int64_t of) { return self.network.add_flatten(of); })
      .def(
          "finish",
          [](Model& self, std::vector<py::ssize_t> in, std::vector<py::ssize_t> out,
             const std::array<double, 3>& samples, const std::array<double, 4>& panel, int threads) {
            const auto size = [](const std::vector<py::ssize_t>& shape) {
              int64_t numel = 1;
              for (size_t i = 1; i < shape.size(); ++i) numel *= shape[i];
              return numel;
            };
            if (in.empty() || out.empty()) throw py::value_error("a network has shapes");
            self.network.finish({{samples[0], samples[1], samples[2]}, {panel[0], panel[1], panel[2], panel[3]}});
            if (size(in) != self.network.features_in() || size(out) != self.network.features_out())
              throw py::value_error("the shapes do not fit the steps");
            self.in = std::move(in);
            self.out = std::move(out);
            self.threads = threads;
            self.weight = std::min(samples[0], panel[3] / runtime::kPanel);
          },
          py::arg("input_shape"), py::arg("output_shape"), py::arg("samples"), py::arg("panel"), py::arg("threads"))
      .def("run", &Model::run, py::arg("x"));
}

}  // namespace sparsenn
