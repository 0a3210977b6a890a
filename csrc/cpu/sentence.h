// What is said of a program that may not run, or of an input that it does not take.
#pragma once
#include <sstream>
#include <string>

namespace qk {

template <class... Parts>
std::string sentence(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace qk
