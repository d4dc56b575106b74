// The small pieces of reading ARPA text: fields, numbers, UTF-8.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>

namespace fastctc {

inline std::string_view trim(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

// Cuts the first field off; fields are parted by blanks and tabs.
inline std::string_view take_field(std::string_view* rest) {
  const std::size_t begin = rest->find_first_not_of(" \t");
  if (begin == std::string_view::npos) {
    *rest = {};
    return {};
  }
  const std::size_t end = rest->find_first_of(" \t", begin);
  const std::string_view field = rest->substr(begin, end == std::string_view::npos ? end : end - begin);
  *rest = end == std::string_view::npos ? std::string_view{} : rest->substr(end);
  return field;
}

// A decimal integer, not negative, of at most 18 digits.
inline bool parse_count(std::string_view text, int64_t* value) {
  if (text.empty() || text.size() > 18) return false;
  *value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    *value = *value * 10 + (c - '0');
  }
  return true;
}

// A decimal number, whatever the locale: "-1.5", "2e-3", "-inf". Right to double precision but for its last digits.
inline bool parse_number(std::string_view text, double* value) {
  const bool negative = !text.empty() && text[0] == '-';
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  if (text == "inf" || text == "Inf" || text == "INF") {
    *value = negative ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
    return true;
  }
  double mantissa = 0;
  int exponent = 0;
  bool digits = false, point = false;
  std::size_t i = 0;
  for (; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '.' && !point) {
      point = true;
    } else if (c >= '0' && c <= '9') {
      digits = true;
      mantissa = mantissa * 10 + (c - '0');
      exponent -= point;
    } else {
      break;
    }
  }
  if (!digits) return false;
  if (i < text.size()) {
    if (text[i] != 'e' && text[i] != 'E') return false;
    const bool below = i + 1 < text.size() && text[i + 1] == '-';
    i += 1 + (i + 1 < text.size() && (below || text[i + 1] == '+'));
    int64_t shift;
    if (!parse_count(text.substr(i), &shift) || shift > 9999) return false;
    exponent += static_cast<int>(below ? -shift : shift);
  }
  *value = mantissa * std::pow(10.0, exponent);
  if (negative) *value = -*value;
  return std::isfinite(*value);
}

// Bytes of the character that the text, which is not empty, begins with; 0 where that is not UTF-8.
inline std::size_t utf8_length(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const std::size_t length = lead < 0x80   ? 1
                             : lead < 0xc2 ? 0
                             : lead < 0xe0 ? 2
                             : lead < 0xf0 ? 3
                             : lead < 0xf5 ? 4
                                           : 0;
  if (length > text.size()) return 0;
  uint32_t code = length == 1 ? lead : lead & (0xffu >> (length + 1));
  for (std::size_t k = 1; k < length; ++k) {
    const auto byte = static_cast<unsigned char>(text[k]);
    if ((byte & 0xc0) != 0x80) return 0;
    code = code << 6 | (byte & 0x3fu);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  return overlong || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0 : length;
}

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

}  // namespace fastctc
