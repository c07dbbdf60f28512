// A test harness: TEST(name) { CHECK(condition, "what is wrong ", value, ...); } and MAIN(). Arguments select tests by
// name.
#pragma once

#include <cstring>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Failure : std::exception {
  explicit Failure(std::string text) : text(std::move(text)) {}
  const char* what() const noexcept override { return text.c_str(); }
  std::string text;
};

template <class... Parts>
[[noreturn]] void fail(const char* file, int line, const char* condition, const Parts&... parts) {
  std::ostringstream text;
  text.precision(17);
  text << file << ':' << line << ": " << condition << ": ";
  (text << ... << parts);
  throw Failure(text.str());
}

inline int main(int count, char** names) {
  int failed = 0, ran = 0;
  for (const Test& test : tests()) {
    bool chosen = count < 2;
    for (int i = 1; i < count; ++i) chosen = chosen || std::strstr(test.name, names[i]);
    if (!chosen) continue;
    ++ran;
    try {
      test.run();
      std::cout << "ok      " << test.name << std::endl;
    } catch (const std::exception& error) {
      ++failed;
      std::cout << "FAILED  " << test.name << "\n        " << error.what() << std::endl;
    }
  }
  return failed || !ran;
}

}  // namespace check

#define TEST(name)                                                                   \
  static void name();                                                                \
  static const bool name##_listed = (check::tests().push_back({#name, name}), true); \
  static void name()
#define CHECK(condition, ...) \
  ((condition) ? void() : check::fail(__FILE__, __LINE__, #condition, "" __VA_OPT__(, ) __VA_ARGS__))
#define MAIN() \
  int main(int count, char** names) { return check::main(count, names); }
