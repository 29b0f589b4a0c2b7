package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"

	"git.thaloco.com/thaloco/banger/api"
)

// Images returns the images of the store and of the catalog.
func (c *Client) Images(ctx context.Context) ([]api.Image, error) {
	return call[[]api.Image](ctx, c, http.MethodGet, "/images", nil)
}

// ImageCatalog returns the images that can be had by name, and says which of them are local.
func (c *Client) ImageCatalog(ctx context.Context) ([]api.Image, error) {
	return call[[]api.Image](ctx, c, http.MethodGet, "/catalog", nil)
}

// Image returns one image.
func (c *Client) Image(ctx context.Context, name string) (api.Image, error) {
	return call[api.Image](ctx, c, http.MethodGet, "/images/"+url.PathEscape(name), nil)
}

// PullImage makes an image local. Result: api.Image.
func (c *Client) PullImage(ctx context.Context, req api.PullImage) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/images/pull", req)
}

// RegisterImage makes an image of a file of the host. Result: api.Image.
func (c *Client) RegisterImage(ctx context.Context, req api.RegisterImage) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/images/register", req)
}

// PromoteImage makes an image of what a running VM's root holds. Result: api.Image.
func (c *Client) PromoteImage(ctx context.Context, req api.PromoteImage) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/images/promote", req)
}

// ExportImage writes an image to a bundle, a file of the host. Result: api.Image.
func (c *Client) ExportImage(ctx context.Context, name string, req api.ExportImage) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/images/"+url.PathEscape(name)+"/export", req)
}

// ImportImage makes the image of a bundle local. Result: api.Image.
func (c *Client) ImportImage(ctx context.Context, req api.ImportImage) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/images/import", req)
}

// TagImage gives an image another name as well.
func (c *Client) TagImage(ctx context.Context, name string, req api.TagImage) (api.Image, error) {
	return call[api.Image](ctx, c, http.MethodPost, "/images/"+url.PathEscape(name)+"/tag", req)
}

// PruneImages removes what nothing uses. Result: api.Pruned.
func (c *Client) PruneImages(ctx context.Context, req api.Prune) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodPost, "/images/prune", req)
}

// ImageFiles calls fn with every file of an image, parents before what is in them.
func (c *Client) ImageFiles(ctx context.Context, name string, fn func(api.ImageFile) error) error {
	resp, err := c.send(ctx, http.MethodGet, "/images/"+url.PathEscape(name)+"/files", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var f api.ImageFile
		if err := dec.Decode(&f); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return api.Errorf(api.KindUnavailable, "the list of files was cut: %w", err)
		}
		if err := fn(f); err != nil {
			return err
		}
	}
}

// DeleteImage deletes an image that no VM is pinned to.
func (c *Client) DeleteImage(ctx context.Context, name string) error {
	_, err := call[none](ctx, c, http.MethodDelete, "/images/"+url.PathEscape(name), nil)
	return err
}
