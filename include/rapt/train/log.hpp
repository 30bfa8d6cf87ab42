// The log of a training run: one JSON object a line, and its picture.
//
//   {"step":1,"loss":6.94,"lr":0,"grad_norm":1.2,"tokens":4096,"seconds":0.8,"scale":1}
//   {"step":100,"validation_loss":4.1,"validation_tokens":16384,"seconds":2.0}
//
//   TrainingLog log("run/log.jsonl", /*keep=*/state.step);      keeps the lines of steps 1 ... keep
//   log.step(report);  log.validation(step, loss, seconds);
//   write_file("loss.svg", loss_curve_svg(read_training_log("run/log.jsonl"), "tiny Shakespeare"));
//
// Each line is written in one call, so a killed run leaves whole lines, but perhaps lines of steps
// after its last checkpoint: a resumed run drops those and writes them again. A number that is not
// finite is null. Errors: IoError; FormatError naming the file and line.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"
#include "rapt/io/atomic_file.hpp"
#include "rapt/io/json_cursor.hpp"
#include "rapt/io/mapped_file.hpp"

namespace rapt::train {

/// A point of a curve.
struct LogPoint {
  index_t step = 0;
  double value = 0;
};

struct TrainingCurves {
  std::vector<LogPoint> loss, validation;
};

namespace detail {

inline std::string json_number(double value) {
  if (!std::isfinite(value)) return "null";
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.9g", value);
  return buffer;
}

/// What one line says: its step (-1: none) and whichever loss it has (NaN: none).
struct LogLine {
  index_t step = -1;
  double loss = std::nan(""), validation = std::nan("");
};

inline LogLine parse_log_line(std::string_view line, const std::string& source) {
  LogLine out;
  rapt::detail::JsonCursor json(line, source);
  json.object([&](const std::string& key) {
    const std::string value(json.raw());
    if (key == "step") out.step = std::strtoll(value.c_str(), nullptr, 10);
    const bool number = value != "null";
    if (key == "loss" && number) out.loss = std::strtod(value.c_str(), nullptr);
    if (key == "validation_loss" && number) out.validation = std::strtod(value.c_str(), nullptr);
  });
  json.end();
  return out;
}

/// f(line, parsed) for every line; the last one may be cut short and is then left out.
template <class F>
void for_log_lines(std::string_view text, const std::string& source, F f) {
  index_t number = 0;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    if (end == std::string_view::npos) return;
    ++number;
    const std::string_view line = text.substr(0, end);
    f(line, parse_log_line(line, rapt::detail::text(source, ":", number)));
    text.remove_prefix(end + 1);
  }
}

}  // namespace detail

class TrainingLog {
 public:
  /// Opens or makes the file; lines of steps after `keep` are dropped first.
  TrainingLog(const std::filesystem::path& path, index_t keep) : path_(path) {
    std::string kept;
    if (std::filesystem::exists(path)) {
      const std::string all = read_file(path);
      detail::for_log_lines(all, path.string(),
                            [&](std::string_view line, const detail::LogLine& parsed) {
                              if (parsed.step <= keep) kept += std::string(line) + '\n';
                            });
      if (kept != all) write_file(path, kept);
    }
    fd_ = rapt::detail::FileDescriptor(
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
    if (fd_.get() < 0) rapt::detail::throw_io_error(path, "open for writing", errno);
  }

  template <class Report>
  void step(const Report& r) {
    using detail::json_number;
    write(rapt::detail::text(
        "{\"step\":", r.step, ",\"loss\":", json_number(r.loss), ",\"lr\":", json_number(r.lr),
        ",\"grad_norm\":", json_number(r.grad_norm), ",\"tokens\":", r.tokens,
        ",\"seconds\":", json_number(r.seconds), ",\"scale\":", json_number(r.scale),
        r.skipped ? ",\"skipped\":true" : "", "}\n"));
  }
  void validation(index_t step, double loss, index_t tokens, double seconds) {
    using detail::json_number;
    write(rapt::detail::text("{\"step\":", step, ",\"validation_loss\":", json_number(loss),
                             ",\"validation_tokens\":", tokens,
                             ",\"seconds\":", json_number(seconds), "}\n"));
  }

 private:
  void write(std::string_view line) {
    while (!line.empty()) {
      const ssize_t n = ::write(fd_.get(), line.data(), line.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) rapt::detail::throw_io_error(path_, "write", errno);
      line.remove_prefix(static_cast<std::size_t>(n));
    }
  }

  std::filesystem::path path_;
  rapt::detail::FileDescriptor fd_{-1};
};

/// The losses of a log.
inline TrainingCurves read_training_log(const std::filesystem::path& path) {
  TrainingCurves out;
  detail::for_log_lines(read_file(path), path.string(),
                        [&](std::string_view, const detail::LogLine& line) {
                          if (!std::isnan(line.loss)) out.loss.push_back({line.step, line.loss});
                          if (!std::isnan(line.validation))
                            out.validation.push_back({line.step, line.validation});
                        });
  return out;
}

/// The curves as a picture: the training loss as a band of its extremes and a smoothed line, the
/// validation loss as points. It stands alone and follows the reader's light or dark page.
inline std::string loss_curve_svg(const TrainingCurves& curves, std::string_view title) {
  constexpr double kWidth = 720, kHeight = 360, kLeft = 56, kRight = 16, kTop = 36, kBottom = 44;
  double low = HUGE_VAL, high = -HUGE_VAL, last = 1;
  for (const auto* curve : {&curves.loss, &curves.validation})
    for (const LogPoint& p : *curve) {
      low = std::min(low, p.value);
      high = std::max(high, p.value);
      last = std::max(last, static_cast<double>(p.step));
    }
  if (!(low <= high)) low = 0, high = 1;
  const auto nice = [](double range) {  // 1, 2 or 5 times a power of ten; about five lines
    const double raw = range / 5, power = std::pow(10.0, std::floor(std::log10(raw)));
    const double share = raw / power;
    return power * (share <= 1 ? 1 : share <= 2 ? 2 : share <= 5 ? 5 : 10);
  };
  const double dy = nice(std::max(1e-6, high - low)), dx = std::max(1.0, nice(last));
  low = std::floor(low / dy) * dy;
  high = std::max(low + dy, std::ceil(high / dy) * dy);
  const auto x = [&](double step) { return kLeft + step / last * (kWidth - kLeft - kRight); };
  const auto y = [&](double v) {
    return kTop + (high - v) / (high - low) * (kHeight - kTop - kBottom);
  };
  const auto number = [](double v, const char* format = "%.1f") {
    char buffer[40];
    std::snprintf(buffer, sizeof buffer, format, v);
    return std::string(buffer);
  };
  const auto escaped = [](std::string_view s) {
    std::string out;
    for (const char c : s) {
      if (c == '<')
        out += "&lt;";
      else if (c == '&')
        out += "&amp;";
      else
        out += c;
    }
    return out;
  };
  using rapt::detail::text;
  std::string svg =
      text("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", number(kWidth, "%.0f"), " ",
           number(kHeight, "%.0f"), "\" font-family=\"sans-serif\" font-size=\"12\">\n<style>",
           ".i{fill:#333}.g{stroke:#8885;fill:none}.t{stroke:#2563eb;fill:none;stroke-width:1.6}",
           ".b{fill:#2563eb33}.v{fill:#dc2626}",
           "@media(prefers-color-scheme:dark){.i{fill:#ddd}.t{stroke:#7aa2ff}.b{fill:#7aa2ff33}",
           ".v{fill:#ff8080}}</style>\n");
  svg += text("<text class=\"i\" x=\"", number(kLeft), "\" y=\"20\" font-size=\"14\">",
              escaped(title), "</text>\n");
  for (double v = low; v <= high + dy / 2; v += dy)
    svg +=
        text("<path class=\"g\" d=\"M", number(kLeft), " ", number(y(v)), "H",
             number(kWidth - kRight), "\"/><text class=\"i\" text-anchor=\"end\" x=\"",
             number(kLeft - 6), "\" y=\"", number(y(v) + 4), "\">", number(v, "%g"), "</text>\n");
  for (double s = 0; s <= last + 0.5; s += dx)
    svg += text("<text class=\"i\" text-anchor=\"middle\" x=\"", number(x(s)), "\" y=\"",
                number(kHeight - kBottom + 18), "\">", number(s, "%.0f"), "</text>\n");
  svg += text("<text class=\"i\" text-anchor=\"middle\" x=\"",
              number((kLeft + kWidth - kRight) / 2), "\" y=\"", number(kHeight - 8),
              "\">step (line: training loss; points: validation)</text>\n");

  if (!curves.loss.empty()) {
    // As many columns as the eye can tell apart, each with the extremes of its steps.
    constexpr std::size_t kColumns = 320;
    const std::size_t per =
        std::max<std::size_t>(1, (curves.loss.size() + kColumns - 1) / kColumns);
    std::string top, bottom, line;
    double smooth = curves.loss.front().value;
    for (std::size_t i = 0; i < curves.loss.size(); i += per) {
      double least = HUGE_VAL, most = -HUGE_VAL, sum = 0;
      const std::size_t end = std::min(curves.loss.size(), i + per);
      for (std::size_t j = i; j < end; ++j) {
        least = std::min(least, curves.loss[j].value);
        most = std::max(most, curves.loss[j].value);
        sum += curves.loss[j].value;
      }
      const double mean = sum / static_cast<double>(end - i);
      smooth = i == 0 ? mean : 0.7 * smooth + 0.3 * mean;
      const std::string at = number(x(static_cast<double>(curves.loss[i].step)));
      top += text(i == 0 ? "M" : "L", at, " ", number(y(most)));
      bottom = text("L", at, " ", number(y(least))) + bottom;
      line += text(i == 0 ? "M" : "L", at, " ", number(y(smooth)));
    }
    svg += text("<path class=\"b\" d=\"", top, bottom, "Z\"/>\n<path class=\"t\" d=\"", line,
                "\"/>\n");
  }
  for (const LogPoint& p : curves.validation)
    svg += text("<circle class=\"v\" r=\"2.5\" cx=\"", number(x(static_cast<double>(p.step))),
                "\" cy=\"", number(y(p.value)), "\"/>\n");
  return svg + "</svg>\n";
}

}  // namespace rapt::train
