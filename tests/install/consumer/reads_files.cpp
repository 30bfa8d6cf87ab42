#include <rapt/io.hpp>
#include <rapt/text.hpp>

int main() {}
