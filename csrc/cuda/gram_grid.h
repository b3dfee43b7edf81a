// How blocks share the lower triangle of a Gram matrix, in tiles of 16 x 16: few rows are one
// triangle, many are cut into squares of strips with a triangle along the diagonal. A block takes a
// run of the tiles of one triangle or square, counted row by row.
#pragma once

#include <cstdint>

namespace hullft {

constexpr int kGridSide = 16;      // rows of a strip, and of a tile either way
constexpr int kBlockWarps = 8;     // each takes an equal part of the run
constexpr int kMostWarpTiles = 6;  // whose sums fit the registers of a thread
constexpr int kMostStrips = 15;    // whose slices fit shared memory three times

struct TileGrid {
  int side;     // strips of a square
  int squares;  // along the diagonal
  int run;      // tiles of a block
  int blocks_of_triangle, blocks_of_square;

  int triangle_tiles() const { return side * (side + 1) / 2; }
  int64_t triangle_blocks() const { return int64_t(squares) * blocks_of_triangle; }
  int64_t blocks() const {
    return triangle_blocks() + int64_t(squares) * (squares - 1) / 2 * blocks_of_square;
  }
};

// A run of a square touches at most 7 of its rows, and its columns are at most 8: 15 strips.
constexpr int kMostSquareStrips = 8;
static_assert((kBlockWarps * kMostWarpTiles - 2) / kMostSquareStrips + 2 + kMostSquareStrips <=
              kMostStrips);

inline TileGrid tile_grid(int rows, int warp_tiles) {
  const auto parts = [](int whole, int part) { return (whole + part - 1) / part; };
  const int strips = parts(rows, kGridSide);
  TileGrid grid{};
  grid.squares = strips <= kMostStrips ? 1 : parts(strips, kMostSquareStrips);
  grid.side = parts(strips, grid.squares);
  grid.run = kBlockWarps * warp_tiles;
  grid.blocks_of_triangle = parts(grid.triangle_tiles(), grid.run);
  grid.blocks_of_square = parts(grid.side * grid.side, grid.run);
  return grid;
}

}  // namespace hullft
